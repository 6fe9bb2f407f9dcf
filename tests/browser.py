"""A headless Chromium that prints the document after its scripts."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)")


def browse(page: str, folder: Path, state: str = "", script: str = "") -> str:
    """The document of a page after its scripts ran, at an address that ends in `state`. A `script` runs last;
    for it the page's own policy is removed.
    """
    if script:
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
        page = page.replace("</body>", f"<script>{script}</script></body>")
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    return dump(f"{path.as_uri()}#{state}", folder)


def dump(address: str, folder: Path) -> str:
    """The document at an address after its scripts ran."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    flags += ["--virtual-time-budget=3000", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    command = [str(CHROMIUM), *flags, address]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def width_on_a_phone(page: str, folder: Path, expression: str, state: str = "") -> tuple[int, int, int]:
    """How wide the page is and how wide its window is, in a frame of 390 pixels, and the value of an
    expression of JavaScript in which `page` is the document.
    """
    frame = f"""<!doctype html><iframe id="phone" width="390" height="800" style="border: 0"></iframe><script>
      phone.onload = () => {{
        const page = phone.contentDocument, {{scrollWidth, clientWidth}} = page.documentElement;
        document.title = [scrollWidth, clientWidth, {expression}].join();
      }};
      phone.src = "page.html" + location.hash;
    </script>"""
    (folder / "page.html").write_text(page, encoding="utf-8")
    (folder / "frame.html").write_text(frame, encoding="utf-8")
    document = dump(f"{(folder / 'frame.html').as_uri()}#{state}", folder)
    title = re.search(r"<title>(\d+),(\d+),(\d+)</title>", document)
    assert title, document
    width, available, value = map(int, title.groups())
    return width, available, value
