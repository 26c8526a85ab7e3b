"""A folder as pip would leave it, whose entry points are the tests' plugins."""

from pathlib import Path

PLUGINS = Path(__file__).parents[1] / "plugins"


def site(place: Path, **groups: str) -> Path:
    """The metadata of an installed distribution in place/site: `tasks="capitals = capitals:Capitals"` is an entry of
    the group evalsuite.tasks. Modules lie in PLUGINS; both belong on PYTHONPATH."""
    info = place / "site" / "thirdparty-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    entries = [f"[evalsuite.{group}]\n{lines}\n" for group, lines in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(entries))
    return place / "site"
