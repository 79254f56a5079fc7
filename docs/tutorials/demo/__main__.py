"""The main job: two organisations share one platform, on real data, with the embedded defaults.

Every step goes through the SDK over HTTP, to a server of its own in a fresh folder.
Run it with `make demo`; docs/tutorials/two-organisations.md walks through the same steps.
"""

import tempfile
from pathlib import Path

from server import Platform
from stage import Stage, console
from story import Story


def main() -> None:
    """Run every step, stop the server, and print what was shown."""
    stage = Stage()
    with tempfile.TemporaryDirectory(prefix="modelkeep-demo-") as folder:
        platform = Platform(Path(folder))
        story = Story(stage=stage, platform=platform, folder=Path(folder))
        try:
            for title, step in story.steps():
                with stage.step(title):
                    step()
        finally:
            story.close()
            platform.stop()
    stage.table()
    console.print("\nEverything above ran against a real server, which is stopped and whose folder is gone.")


if __name__ == "__main__":
    main()
