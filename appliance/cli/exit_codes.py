"""From an error to the exit code of a command: the one table.

0 all is well, 1 a fault was found, 2 the command line makes no sense, 78 the configuration is not
usable (EX_CONFIG of sysexits.h, by which systemd can tell that a restart won't help).
"""

from appliance.foundation.errors import AzekuraError, ConfigurationError, UsageError

OK = 0
FAULT = 1
USAGE = 2
BAD_CONFIGURATION = 78
# The shell's convention for a command that Ctrl-C ended: 128 and the signal's number.
INTERRUPTED = 130

# The first class that fits counts.
EXIT_CODES: tuple[tuple[type[AzekuraError], int], ...] = (
    (UsageError, USAGE),
    (ConfigurationError, BAD_CONFIGURATION),
    (AzekuraError, FAULT),
)


def exit_code(error: AzekuraError) -> int:
    """Return the exit code of a command that ended with the error."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
