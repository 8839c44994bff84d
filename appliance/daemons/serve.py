"""`azekura serve`: every daemon under one supervisor, for a laptop, a demo or a container."""

import os

from appliance.config.model import Config
from appliance.daemons.child import Child
from appliance.daemons.running import Running, notify


def run(config: Config, config_path: str) -> int:
    """Run the daemons until stopped; return the exit code. One that ends is started again."""
    del config  # checked by whoever loaded it; each daemon reads the file itself
    running = Running()
    running.install()
    children = [
        Child(
            name,
            "appliance.cli.main",
            ["--config", config_path, name, "--parent", str(os.getpid())],
        )
        for name in ("receive", "uplink", "web")
    ]
    for child in children:
        child.start()
    notify("READY=1")
    try:
        return running.wait()
    finally:
        for child in children:
            child.stop()
