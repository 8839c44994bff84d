"""Configurations of sites as a standby gets them, and of a standby, from a few lines of TOML."""

import json

from appliance.config.adopting import Published, published_of
from appliance.config.load import loads
from appliance.config.model import Config

SIGNER = "azekura-sign1" + "q" * 58


def config_of(dicom: str = "", role: str = "appliance") -> Config:
    """Return a configuration with some of its table `dicom` and its peers."""
    signers = f'[keys.signers]\nsite-a = "{SIGNER}"\nsite-b = "{SIGNER}"\n'
    return loads(
        f'[node]\nname = "{"cloud" if role == "standby" else "site-a"}"\nrole = "{role}"\n'
        f"demo = true\n[cache]\ncapacity = '1 GiB'\n"
        f'[cloud]\nbucket = "archive"\nregion = "ap-northeast-1"\n'
        + (signers if role == "standby" else "")
        + f"[dicom]\n{dicom}"
    )


def standby(dicom: str = "") -> Config:
    return config_of(dicom, "standby")


def site(dicom: str) -> Published:
    """Return what a site publishes, as it comes out of the ledger."""
    found = published_of(config_of(dicom).dicom)
    return Published(*json.loads(json.dumps(found)))


def peer(title: str, address: str, **more: object) -> str:
    keys = {"ae_title": title, "addresses": [address], "allow": ["store", "find"]} | more
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n[[dicom.peers]]\n" + "\n".join(lines) + "\n"


A = (
    'ae_title = "AZEKURA"\nissuer = "A"\n'
    + peer("PACS1", "192.0.2.1/32")
    + peer("CT", "10.1.0.0/16")
)
