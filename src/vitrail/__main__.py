"""``python -m vitrail``, the same as the installed ``vitrail``."""

from vitrail.cli.main import entry_point

entry_point()
