"""Whoever answers in the bucket's place without proving its name gets nothing; DNS that fails."""

import socket
import ssl
import threading

import pytest

from appliance.foundation.errors import CloudUnavailable
from tests.support.certificates import Authority
from tests.support.stub_store import StubStore, answer
from tests.unit.test_remote_s3_answers import make_store, put


class Impostor(StubStore):
    """A stub that speaks TLS, with a certificate of an authority that nobody here knows."""

    def __init__(self, files) -> None:
        super().__init__(lambda _: answer("200 OK", b"", ETag='"1"'))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.handle_error = lambda *_: None
        self.url = self.url.replace("http:", "https:").replace("127.0.0.1", "localhost")


def test_an_impostor_learns_nothing(tmp_path) -> None:
    """A poisoned DNS answer leads to it: its certificate does not prove the name; no byte goes."""
    with Impostor(Authority(tmp_path, "stranger").issue("localhost")) as impostor:
        with pytest.raises(CloudUnavailable) as caught:
            put(make_store(impostor.url))
        assert "certificate does not prove its name" in caught.value.hint
        assert impostor.asked == []


def test_a_name_that_does_not_resolve_is_a_matter_of_the_line(monkeypatch) -> None:
    """The queue holds; with DNS back the next try goes through."""
    with StubStore(lambda _: answer("200 OK", b"", ETag='"1"')) as stub:
        store = make_store(stub.url.replace("127.0.0.1", "localhost"))
        failed = threading.Event()

        def fail(*_arguments, **_named):
            failed.set()
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        monkeypatch.setattr(socket, "getaddrinfo", fail)
        with pytest.raises(CloudUnavailable) as caught:
            put(store)
        assert failed.is_set()
        assert "DNS" in caught.value.hint
        monkeypatch.undo()
        assert put(store).etag == "1"
