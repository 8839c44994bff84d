"""`azekura doctor`: every health check at once, a line each.

Owns which checks a node needs and what each is given. It makes nothing and needs nothing of the
daemons: it works before the first start, while they are down, and while the line is cut.
"""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import exit_codes, invocation

if TYPE_CHECKING:
    from appliance.archive.layout import Layout
    from appliance.config.model import Config
    from appliance.foundation.clock import Clock
    from appliance.foundation.files import FileSystem
    from appliance.health.check import Check, Finding, Findings
    from appliance.remote.store import LockMode

ECHO_CONNECT_S = 3.0
ECHO_ANSWER_S = 5.0
WEB_ANSWER_S = 10.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to call what listens so
_MARKS = {"ok": "ok     ", "warning": "warning", "error": "error  "}


def doctor(
    context: typer.Context,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="Also store a probe under Object Lock; it stays in the bucket."
        ),
    ] = False,
) -> None:
    """Check everything that the node stands on; exit code 1 when something is an error."""
    from appliance.foundation import log
    from appliance.health.check import Severity, run_checks

    call = invocation.of(context)
    config = call.config
    log.configure(json_lines=False, level="error")
    findings = run_checks([*_local(call.config_path, config), *_cloud(config, probe=probe)])
    call.output.result(
        [
            {
                "condition": each.condition,
                "severity": each.severity,
                "sentence": each.sentence,
                "hint": each.hint,
                "fix": each.fix,
            }
            for each in findings
        ],
        "\n".join(map(_line, findings)),
    )
    faulty = any(each.severity is Severity.ERROR for each in findings)
    raise typer.Exit(exit_codes.FAULT if faulty else exit_codes.OK)


def _line(finding: "Finding") -> str:
    text = f"{_MARKS[finding.severity]}  {finding.condition}: {finding.sentence}"
    if finding.hint:
        text += f"\n         {finding.hint}"
    if finding.fix:
        text += f"\n         run: {finding.fix}"
    return text


def _local(config_path: str, config: "Config") -> "list[Check]":
    from appliance.archive.adopted import adopted_by
    from appliance.archive.layout import Layout
    from appliance.foundation.clock import SystemClock
    from appliance.foundation.files import FileSystem
    from appliance.health.check import Check
    from appliance.health.configuration import check_configuration
    from appliance.health.data_directory import check_data_directory
    from appliance.health.dicom_port import check_dicom_port
    from appliance.health.keys import check_keys
    from appliance.health.web_port import check_web_port

    clock, files = SystemClock(), FileSystem()
    data_dir = config.node.data_dir
    config = adopted_by(config, Layout(data_dir)).config
    dicom = config.dicom
    checks = [
        Check("configuration", lambda: check_configuration(config_path, config)),
        Check("keys", lambda: check_keys(config.keys, signs=config.writes)),
        Check("data_directory", lambda: check_data_directory(files, data_dir)),
    ]
    layout = Layout(data_dir)
    if os.path.isdir(layout.open_packs):
        checks += _of_data(config, clock, files, layout)
        if config.node.role == "standby":
            checks.append(Check("standby", lambda: _standby(config, clock, layout)))
    checks.append(Check("dicom_port", lambda: check_dicom_port(dicom.port, lambda: _echo(config))))
    web = config.web
    checks.append(Check("web_port", lambda: check_web_port(clock, web.port, lambda: _web(config))))
    if dicom.tls is not None:
        from appliance.health.certificate import check_certificate

        tls = dicom.tls
        checks.append(Check("tls_certificate", lambda: check_certificate(clock, tls)))
    return checks


def _of_data(
    config: "Config", clock: "Clock", files: "FileSystem", layout: "Layout"
) -> "list[Check]":
    """Return the checks of a node that was started before."""
    from appliance.daemons.receive import WRITER
    from appliance.health.check import Check
    from appliance.health.daemon_alive import check_daemon
    from appliance.health.flush_time import check_flush_time
    from appliance.health.index import check_index
    from appliance.health.set_aside import check_set_aside

    receive_lock = os.path.join(layout.writer_directory(WRITER), "lock")
    indexer_lock = os.path.join(layout.index, "indexer.lock")
    uplink_lock = os.path.join(layout.state, "uplink.lock")
    return [
        Check("disk_space", lambda: _disk_space(config, files, layout)),
        Check("flush_time", lambda: check_flush_time(files, layout.data_dir)),
        Check("index", lambda: check_index(files, layout.index, _index_problem(clock, layout))),
        Check(
            "receive",
            lambda: check_daemon(
                "receive", "azekura receive", receive_lock,
                "Nothing is received, found or sent: start it",
            ),
        ),
        Check(
            "indexer",
            lambda: check_daemon(
                "indexer", "the indexer", indexer_lock,
                "Queries do not see what comes. azekura receive starts it: see its log",
            ),
        ),
        Check(
            "uplink",
            lambda: check_daemon(
                "uplink", "azekura uplink", uplink_lock,
                "Nothing reaches the bucket, nothing is evicted: start it",
            ),
        ),
        Check("uplink_status", lambda: _uplink_status(clock, layout)),
        Check("pending", lambda: _pending(config, clock, files, layout)),
        Check("drill", lambda: _drill(config, clock, layout)),
        Check("set_aside", lambda: check_set_aside(layout.set_aside)),
    ]  # fmt: skip


def _standby(config: "Config", clock: "Clock", layout: "Layout") -> "Findings":
    from appliance.archive.accepting import Accepting
    from appliance.archive.nodes import node_documents, nodes_now
    from appliance.archive.status import read_uplink_status
    from appliance.health.standby import check_standby

    said = read_uplink_status(layout)
    return check_standby(
        node_documents(nodes_now(layout, clock), {}),
        said.following if said is not None else (),
        Accepting(layout, clock, config).refusal,
        config.standby.accept_stores,
    )


def _index_problem(clock: "Clock", layout: "Layout") -> dict[str, str] | None:
    from appliance.archive.index_condition import IndexCondition
    from appliance.foundation.files import FileSystem

    problem = IndexCondition(FileSystem(), clock, layout).problem()
    return problem.document() if problem is not None else None


def _disk_space(config: "Config", files: "FileSystem", layout: "Layout") -> "Findings":
    from appliance.archive.space import Space
    from appliance.health.disk_space import DiskSpace, check_disk_space

    space = Space(files, layout, config.cache.capacity_bytes)
    free_bytes = files.free_bytes(layout.data_dir)
    return check_disk_space(
        DiskSpace(space.used_bytes, free_bytes, space.capacity_bytes, space.reserve_bytes)
    )


def _uplink_status(clock: "Clock", layout: "Layout") -> "Findings":
    from appliance.archive.status import read_uplink_status
    from appliance.health.uplink_status import check_uplink_status

    said = read_uplink_status(layout)
    if said is None:
        return check_uplink_status(clock, None, "unknown", ())
    return check_uplink_status(clock, said.at_s, said.link, said.problems)


def _pending(config: "Config", clock: "Clock", files: "FileSystem", layout: "Layout") -> "Findings":
    from appliance.foundation.errors import AzekuraError
    from appliance.health.pending import Pending, check_pending
    from appliance.index.index import Index

    index = Index(files, layout.index)
    try:
        with index.read() as view:
            counts = view.counts()
    except AzekuraError:
        return []  # the check of the index says so
    finally:
        index.close()
    return check_pending(
        clock,
        Pending(
            counts.pending_instances,
            counts.pending_bytes,
            counts.oldest_pending_us,
            config.cache.capacity_bytes,
        ),
    )


def _drill(config: "Config", clock: "Clock", layout: "Layout") -> "Findings":
    from appliance.archive.drill_book import read_notes
    from appliance.health.drill import LastDrill, check_drill

    notes = read_notes(layout)
    last = None
    if notes.last is not None:
        held = notes.last
        last = LastDrill(held.at, held.identity, held.instances, held.matched, len(held.findings))
    return check_drill(clock, config.drill.every_s, notes.since_at, last)


def _cloud(config: "Config", *, probe: bool) -> "list[Check]":
    from appliance.foundation.clock import SystemClock
    from appliance.health.bucket import check_bucket
    from appliance.health.check import Check
    from appliance.health.clock_skew import check_clock_skew
    from appliance.health.other_nodes import check_other_nodes
    from appliance.health.permissions import check_reading, check_writing
    from appliance.remote.s3 import S3Store
    from appliance.remote.s3_client import S3Settings, systemd_credentials_file
    from appliance.remote.throttle import ConstantRate, Throttle

    cloud, clock = config.cloud, SystemClock()
    settings = S3Settings(
        bucket=cloud.bucket, region=cloud.region, endpoint_url=cloud.endpoint_url,
        prefix=cloud.prefix, credentials_file=systemd_credentials_file(),
    )  # fmt: skip

    def store() -> S3Store:
        return S3Store(settings, Throttle(ConstantRate(None), config.node.zone, clock), clock)

    needs_lock = cloud.object_lock != "off"
    checks = [
        Check("bucket", lambda: check_bucket(store(), needs_lock=needs_lock)),
        Check("bucket_permissions", lambda: check_reading(store())),
        Check("clock", lambda: check_clock_skew(clock, store())),
        Check(
            "other_nodes",
            lambda: check_other_nodes(store(), config.node.name, config.keys.signers),
        ),
    ]
    if probe and needs_lock:
        mode: LockMode = "COMPLIANCE" if cloud.object_lock == "compliance" else "GOVERNANCE"
        checks.append(Check("object_lock", lambda: check_writing(store(), mode)))
    return checks


def _echo(config: "Config") -> None:
    """Send a C-ECHO to this node under its own title; a PeerError when it gets no Success."""
    from appliance.dicom import status, uid
    from appliance.dimse.commands import encode_echo_request
    from appliance.dimse.contexts import Proposal
    from appliance.dimse.limits import Limits
    from appliance.dimse.requestor import request_association
    from appliance.foundation.errors import AssociationLost

    dicom = config.dicom
    association = request_association(
        _ANY_ADDRESS.get(dicom.host, dicom.host),
        dicom.port,
        calling_ae=dicom.ae_title,
        called_ae=dicom.ae_title,
        proposals=(Proposal(uid.VERIFICATION, uid.UNCOMPRESSED_TRANSFER_SYNTAXES),),
        limits=Limits(connect_s=ECHO_CONNECT_S, response_s=ECHO_ANSWER_S),
    )
    try:
        found = association.find_context(uid.VERIFICATION)
        assert found is not None
        number = association.next_message_id()
        answer = association.exchange(
            found.context_id, encode_echo_request(number), number, timeout_s=ECHO_ANSWER_S
        )
        association.release()
    finally:
        association.close()
    if answer.status != status.SUCCESS:
        raise AssociationLost("echo", dicom.ae_title, f"status 0x{answer.status:04X}")


def _web(config: "Config") -> bytes:
    """Return the web daemon's certificate once it has said that it is well; OSError."""
    import http.client
    import ssl

    web = config.web
    # This box asks itself, and may not know the hospital's authority.
    context = ssl._create_unverified_context()  # noqa: S323, SLF001
    host = _ANY_ADDRESS.get(web.host, web.host)
    connection = http.client.HTTPSConnection(host, web.port, timeout=WEB_ANSWER_S, context=context)
    try:
        connection.connect()
        found = connection.sock.getpeercert(binary_form=True)
        connection.request("GET", "/health")
        if connection.getresponse().status != http.client.OK:
            raise OSError("it answers otherwise than azekura web does")
    except http.client.HTTPException as cause:
        raise OSError("what answers there is no web daemon") from cause
    finally:
        connection.close()
    assert isinstance(found, bytes)
    return found
