"""A headless Chromium that prints the document after its scripts."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)")


def browse(page: str, folder: Path, script: str = "", *flags: str) -> str:
    """The document after its scripts ran. A `script` runs last; for it the page's own policy is removed."""
    if script:
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
        page = page.replace("</body>", f"<script>{script}</script></body>")
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    return dump(path.as_uri(), folder, *flags)


def dump(address: str, folder: Path, *flags: str) -> str:
    """What the browser makes of a file."""
    usual = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    usual += ["--virtual-time-budget=3000", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    command = [str(CHROMIUM), *usual, *flags, address]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
