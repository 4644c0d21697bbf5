"""How a stage stops: one line of what was got, what is wanted and the way out.

Stop
├── Refused   wrong use: the recipe or the command line is at fault; exit 2
└── Failed    the work could not be done: bad data, no credentials, a full disk; exit 1
"""


class Stop(Exception):
    """A message for the user; the command prints it on one line and exits with `code`."""

    code = 1


class Refused(Stop):
    code = 2


class Failed(Stop):
    code = 1
