"""A page runs its own script, and asks a server only if it is served."""

from mlsm.pages.content_policy import content_policy

# printf 'abc' | openssl dgst -sha256 -binary | base64
DIGEST_OF_ABC = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="


def test_a_policy_names_script_and_style_by_their_digests() -> None:
    parts = content_policy("abc", "p {}").split("; ")
    assert f"script-src '{DIGEST_OF_ABC}'" in parts
    assert "default-src 'none'" in parts
    assert f"style-src '{DIGEST_OF_ABC}'" in content_policy("", "abc").split("; ")


def test_only_a_served_page_asks_a_server() -> None:
    assert "connect-src" not in content_policy("a", "b")
    assert "connect-src 'self'" in content_policy("a", "b", is_served=True).split("; ")
