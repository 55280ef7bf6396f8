"""What the refresher hears of files, and whom it takes it to concern."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path

from krbrefresh.refresher.watch import Watch


class Ear:
    def __init__(self) -> None:
        self.told: list[Collection[object] | None] = []
        self.watch = Watch(self.told.append)

    async def heard(self, what: Callable[[], object]) -> set[object] | None:
        """Whom what is done concerns; None where that is everybody."""
        self.told.clear()
        what()
        for _ in range(20):
            await asyncio.sleep(0.005)
        if None in self.told:
            return None
        return {who for told in self.told if told for who in told}


def listening(play: Callable[[Ear], Coroutine[None, None, None]]) -> None:
    async def main() -> None:
        ear = Ear()
        try:
            await play(ear)
        finally:
            ear.watch.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_an_event_concerns_whom_the_file_does(place: Path) -> None:
    (place / "keytabs").mkdir()
    (place / "one").mkdir()
    shared, own = place / "keytabs" / "shared", place / "one" / "krb5cc"

    async def play(ear: Ear) -> None:
        ear.watch.add("one", [str(shared), str(own)])
        ear.watch.add("two", [str(shared)])
        assert await ear.heard(lambda: shared.write_text("x")) == {"one", "two"}
        assert await ear.heard(lambda: own.write_text("x")) == {"one"}
        assert await ear.heard(lambda: own.chmod(0o600)) == {"one"}
        assert await ear.heard(own.unlink) == {"one"}
        assert await ear.heard(lambda: (place / "one" / "another").write_text("x")) == set()
        assert await ear.heard((place / "one" / "another").unlink) == set()
        assert await ear.heard(lambda: (place / "one").chmod(0o700)) == {"one"}
        ear.watch.forget(["one"])
        assert await ear.heard(lambda: shared.write_text("y")) == {"two"}

    listening(play)


def test_what_has_gone_is_not_kept(place: Path) -> None:
    async def play(ear: Ear) -> None:
        for who in range(10):
            ear.watch.add(who, [str(place / str(who)), str(place / "shared")])
        ear.watch.forget(range(1, 10))
        [by_name] = ear.watch._concerned.values()
        assert by_name == {"0": {0}, "shared": {0}}
        assert await ear.heard(lambda: (place / "5").write_text("x")) == set()

    listening(play)


def test_a_link_can_lead_elsewhere_by_way_of_its_neighbours(place: Path) -> None:
    """As kubelet changes a mounted Secret: ..data is renamed to another directory."""
    for version in ("..1", "..2"):
        (place / version).mkdir()
        (place / version / "keytab").write_text(version)
    (place / "..data").symlink_to("..1")
    (place / "keytab").symlink_to("..data/keytab")

    async def play(ear: Ear) -> None:
        ear.watch.add("one", [str(place / "keytab")])
        (place / "new").symlink_to("..2")
        assert await ear.heard(lambda: (place / "new").rename(place / "..data")) == {"one"}

    listening(play)


def test_a_directory_that_is_removed_and_made_again(place: Path) -> None:
    token = place / "token" / "krb5cc"
    token.parent.mkdir()

    async def play(ear: Ear) -> None:
        ear.watch.add("one", [str(token)])
        assert await ear.heard(lambda: shutil.rmtree(token.parent)) == {"one"}
        token.parent.mkdir()
        ear.watch.add("one", [str(token)])
        assert await ear.heard(lambda: token.write_text("x")) == {"one"}
        assert len(ear.watch._concerned) == 1  # nothing is left of the former one

    listening(play)


def test_events_that_were_lost_concern_everybody(place: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())

    async def play(ear: Ear) -> None:
        ear.watch.add("one", [str(place / "krb5cc")])

        def flood() -> None:
            for index in range(limit // 2 + 10):  # a file that is made and closed is two events
                os.close(os.open(place / f"f{index}", os.O_WRONLY | os.O_CREAT))

        assert await ear.heard(flood) is None

    listening(play)
