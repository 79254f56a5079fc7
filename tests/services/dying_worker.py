"""A worker that counts its noisy steps and dies at its N-th moment: started by `crashing_server` in a worker's place.

It runs the shipped worker module, confined as ever, over the channel it inherited. Its points are each frame that it
sends or receives (before and after, named by the frame's kind) and each draw of noise. What it tells the test goes
through a page of memory: a worker may write no file. Two things are other than in a shipped worker: weights go out in
pieces of a few bytes, so that there are moments within them; and the proof by shape of a model that is known to be
fine is left out, since it takes seconds.

``python -I -B dying_worker.py MODULE PAGE DESCRIPTOR LIMITS``
"""

import os
import sys
from pathlib import Path
from typing import Any, Final

_CHUNK: Final = 64
_TRAINING: Final = "modelkeep_platform.training.worker"


def main(module: str, page_path: str) -> None:
    """Be a worker of `module`."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from modelkeep_platform.workers.child import run
    from services.points import WITH_SERVER, WORKER, Page, Points, kill

    page = Page(Path(page_path))

    def die() -> None:
        server = os.getppid()
        # Whoever has adopted it is not its server.
        if page[WITH_SERVER] and b"crashing_server" in Path(f"/proc/{server}/cmdline").read_bytes():
            kill(server)
        kill(os.getpid())

    points = Points(page, counts=lambda: page.text(WORKER) == module, die=die)
    _count_frames(points)
    if module == _TRAINING:
        from modelkeep_platform.training.worker import train

        def counted(channel: Any, limits: Any) -> None:
            _count_steps(points, page)  # loads torch: not before the limits hold
            train(channel, limits)

        run(counted)
    from modelkeep_platform.serving.worker import serve

    run(serve)


def _count_frames(points: Any) -> None:
    from modelkeep_platform.workers.channel_sync import SyncChannel

    send, receive = SyncChannel.send, SyncChannel.receive

    def counted_send(self: SyncChannel, frame: Any, **options: Any) -> None:
        with points.around(f"send {frame.kind}"):
            send(self, frame, **options)

    def counted_receive(self: SyncChannel, **options: Any) -> Any:
        frame = receive(self, **options)
        points.reach(f"receive {frame.kind}")
        return frame

    SyncChannel.send, SyncChannel.receive = counted_send, counted_receive  # type: ignore[method-assign]


def _count_steps(points: Any, page: Any) -> None:
    from modelkeep_platform.privacy import engine
    from modelkeep_platform.privacy.noise import GaussianNoise
    from modelkeep_platform.training import worker
    from services.points import STEPS

    step = GaussianNoise.step

    def counted(self: GaussianNoise, count: int) -> Any:
        points.reach("before step")
        page[STEPS] += 1
        noise = step(self, count)
        points.reach("after step")
        return noise

    GaussianNoise.step = counted  # type: ignore[method-assign]
    worker._CHUNK = _CHUNK  # type: ignore[misc]
    engine.check_separate = lambda *_: None  # type: ignore[attr-defined]


if __name__ == "__main__":
    _script, name, shared, *inherited = sys.argv
    sys.argv = [_script, *inherited]
    main(name, shared)
