"""The page a person opens: a browser client for one call, in plain ES modules.

``static/`` is served as it is. There is no build step, and nothing is loaded from anywhere else, so the
page works on a machine with no network. ``static/main.js`` is the way in: it says which module owns what.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["static_dir"]


def static_dir() -> Path:
    """The directory to serve at ``/``: ``index.html`` and everything it links to, relatively.

    Raises ``FileNotFoundError`` when the package has no such directory on disk (for example when it is
    imported from inside a zip archive, which a static file server cannot read).
    """
    directory = files(__name__) / "static"
    if not isinstance(directory, Path) or not directory.is_dir():
        raise FileNotFoundError(
            f"the page's files are not at {directory}. Install duplex-runtime as a wheel or with "
            "`pip install -e .`, not from inside an archive."
        )
    return directory
