"""Who an instance came from, or who asks, as the archive's decisions need it."""

import msgspec


class Sender(msgspec.Struct, frozen=True):
    """One association's other end; `issuer` and `character_set` are its configured defaults."""

    calling_ae: str
    called_ae: str
    peer_address: str = ""
    tls_subject: str = ""
    issuer: str = ""
    character_set: str = ""
