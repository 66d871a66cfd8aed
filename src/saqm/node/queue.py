"""What a node has accepted and not yet brought to its end: a SQLite database, and a folder of files beside it.

An instance goes waiting -> scored -> reported -> done; one that a person has to look at ends aside. An object (report,
map, note) is delivered to each destination: pending -> done, or aside where the destination will never take it.

The database knows UIDs, AE titles, hosts, states and times. Whatever may name a patient stands in files only: images in
files/, what scoring them gave in scores/, objects to be sent in outbox/. A file is in its place and on the disk before
the row that speaks of it is committed, and is removed after: what a crash leaves without a row is swept at the start.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, RLock
from typing import IO, Any, Literal

from saqm.errors import OutputError, SaqmError

FORMAT = 1
HOUR, DAY = 3600.0, 86400.0
SERIES_AT_ONCE = 500  # instances in a report: more makes it slow to open, and the next report follows at once
PRIVATE = 0o700
LOOKS = 5  # at the lock of a folder, a tenth of a second apart
SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE instances (
    id INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL,
    class TEXT NOT NULL, syntax TEXT NOT NULL, study TEXT NOT NULL, series TEXT NOT NULL,
    sender TEXT NOT NULL, host TEXT NOT NULL, received REAL NOT NULL, changed REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', attempts INTEGER NOT NULL DEFAULT 0, reason TEXT,
    report INTEGER REFERENCES reports (id), filed INTEGER NOT NULL DEFAULT 1
);
CREATE INDEX instances_state ON instances (state, id);
CREATE INDEX instances_series ON instances (study, series, state);
CREATE INDEX instances_report ON instances (report);
CREATE TABLE series (study TEXT NOT NULL, series TEXT NOT NULL, due REAL NOT NULL, PRIMARY KEY (study, series));
CREATE TABLE reports (id INTEGER PRIMARY KEY, study TEXT NOT NULL, series TEXT NOT NULL, made REAL NOT NULL);
CREATE TABLE objects (
    id INTEGER PRIMARY KEY, report INTEGER NOT NULL REFERENCES reports (id), kind TEXT NOT NULL,
    uid TEXT NOT NULL, class TEXT NOT NULL
);
CREATE INDEX objects_report ON objects (report);
CREATE TABLE deliveries (
    object INTEGER NOT NULL REFERENCES objects (id), destination TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'pending',
    tries INTEGER NOT NULL DEFAULT 0, next_try REAL NOT NULL DEFAULT 0, reason TEXT, PRIMARY KEY (object, destination)
);
CREATE INDEX deliveries_state ON deliveries (destination, state, next_try);
CREATE TABLE destinations (
    name TEXT PRIMARY KEY, tries INTEGER NOT NULL DEFAULT 0, next_try REAL NOT NULL DEFAULT 0, reason TEXT
);
"""

Accepted = Literal["new", "known", "other"]
Clock = Callable[[], float]


class QueueFull(SaqmError):
    """No more can be accepted now: too many wait, or the disk is full. What was sent was not taken."""


@dataclass(frozen=True)
class Arrival:
    """An instance that has been received whole, in a file that is still beside the queue."""

    path: Path
    sha256: str
    bytes: int
    uid: str
    sop_class: str
    syntax: str
    study: str
    series: str
    sender: str
    host: str


@dataclass(frozen=True)
class Waiting:
    """An instance to be scored. attempts: this one included."""

    id: int
    uid: str
    path: Path
    attempts: int


@dataclass(frozen=True)
class Scored:
    """An instance to be reported on."""

    id: int
    uid: str
    path: Path
    scores: Path


@dataclass(frozen=True)
class Made:
    """An object that has been made for a report. kind: report, map or note."""

    kind: str
    uid: str
    sop_class: str
    content: bytes


@dataclass(frozen=True)
class Delivery:
    """An object on its way to a destination."""

    object: int
    kind: str
    uid: str
    sop_class: str
    path: Path
    tries: int


class Queue:
    """The queue of one node; one process has it at a time. Safe to use from several threads."""

    def __init__(self, folder: str | Path, *, clock: Clock, device_uid: Callable[[], str]) -> None:
        """Open it, made where there is none, and sweep what a crash has left.

        device_uid: makes the UID by which this installation is known in its reports, the first time. Raises SaqmError
        where another process has it, or a newer saqm made it, and OutputError where it cannot be written.
        """
        self.folder, self._clock = Path(folder).resolve(), clock
        self.incoming, self.files = self.folder / "incoming", self.folder / "files"
        self.scores, self.outbox = self.folder / "scores", self.folder / "outbox"
        self._turn = RLock()
        self._in_hand: set[int] = set()
        try:
            for each in (self.folder, self.incoming, self.files, self.scores, self.outbox):
                each.mkdir(PRIVATE, parents=True, exist_ok=True)
            self._lock = _locked(self.folder)
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot hold the queue: {error.strerror}") from error
        try:
            self._db = _connected(database_path(self.folder))
            self._prepare(device_uid)
            self._sweep()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError | sqlite3.Error):
                raise OutputError(f"{self.folder}: cannot hold the queue: {_words(error)}") from error
            raise

    def close(self) -> None:
        """Let go of it."""
        with self._turn:
            if hasattr(self, "_db"):
                self._db.close()
            self._lock.close()

    @property
    def device_uid(self) -> str:
        """The UID by which this installation is known in its reports."""
        return str(self._one("SELECT value FROM meta WHERE name = 'device_uid'")[0])

    # Accepting

    def refuse_when_full(self, most: int) -> None:
        """Raise QueueFull where as many instances as that are not yet reported."""
        waiting = self._one("SELECT count(*) FROM instances WHERE state IN ('waiting', 'scored')")[0]
        if waiting >= most:
            raise QueueFull(f"{waiting} instances wait to be scored; up to {most} may")

    def accept(self, arrival: Arrival, *, stable_seconds: float) -> Accepted:
        """Take an instance for good: once this returns, no crash loses it.

        "known": the same bytes were accepted before. "other": this UID was, with other bytes, and those stand; what
        came now is not taken. Raises QueueFull where the disk is full; then nothing is left behind.
        """
        name = _file_name(arrival.uid)
        place = self.files / name
        try:
            with arrival.path.open("rb") as stream:
                os.fsync(stream.fileno())
            with self._turn:
                known = self._found("SELECT sha256 FROM instances WHERE uid = ?", arrival.uid)
                if known is not None:
                    arrival.path.unlink()
                    return "known" if known[0] == arrival.sha256 else "other"
                arrival.path.replace(place)
                _sync_folder(self.files)
                with self._change() as db:
                    db.execute(
                        "INSERT INTO instances (uid, sha256, bytes, class, syntax, study, series, sender, host, "
                        "received, changed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (
                            *(arrival.uid, arrival.sha256, arrival.bytes, arrival.sop_class, arrival.syntax),
                            *(arrival.study, arrival.series, arrival.sender, arrival.host),
                            *(self._clock(), self._clock()),
                        ),
                    )
                    self._set_due(db, arrival.study, arrival.series, self._clock() + stable_seconds)
            return "new"
        except (OSError, sqlite3.OperationalError) as error:
            arrival.path.unlink(missing_ok=True)
            with self._turn:
                if self._found("SELECT 1 FROM instances WHERE uid = ?", arrival.uid) is None:
                    place.unlink(missing_ok=True)
            raise QueueFull(f"cannot be written: {_words(error)}") from error

    def released(self, series: Iterable[tuple[str, str]], *, wait_seconds: float) -> None:
        """The sender of these series (study and series UID) says that it is done: they are complete so much sooner."""
        with self._turn, self._change() as db:
            for study, uid in series:
                db.execute(
                    "UPDATE series SET due = min(due, ?) WHERE study = ? AND series = ?",
                    (self._clock() + wait_seconds, study, uid),
                )

    # Scoring

    def take(self, most: int, *, attempts: int) -> list[Waiting]:
        """Instances to be scored now, each counted as tried before it is given out.

        One that was in hand twice when the node ended comes alone, so that it takes no other along; one that was in
        hand `attempts` times comes alone too, with more attempts than that: it is not to be tried again.
        """
        with self._turn:
            held = ",".join(map(str, self._in_hand))
            rows = self._db.execute(
                f"SELECT id, uid, attempts FROM instances WHERE state = 'waiting' AND id NOT IN ({held}) "
                "ORDER BY attempts, id LIMIT ?",
                (most,),
            ).fetchall()
            taken = [row for row in rows if row[2] < min(2, attempts - 1)] or rows[:1]
            if not taken:
                return []
            numbers = [row[0] for row in taken]
            with self._change() as db:
                self._each(db, "UPDATE instances SET attempts = attempts + 1 WHERE id = ?", numbers)
            self._in_hand.update(numbers)
            return [Waiting(id, uid, self.files / _file_name(uid), tried + 1) for id, uid, tried in taken]

    def waiting(self) -> int:
        """How many instances are to be scored, those in hand not counted."""
        with self._turn:
            return int(self._one("SELECT count(*) FROM instances WHERE state = 'waiting'")[0]) - len(self._in_hand)

    def put_back(self, instances: Iterable[Waiting]) -> None:
        """These were not scored for no fault of theirs: they wait as before."""
        numbers = [instance.id for instance in instances]
        with self._turn, self._change() as db:
            self._each(db, "UPDATE instances SET attempts = attempts - 1 WHERE id = ?", numbers)
            self._in_hand.difference_update(numbers)

    def scores_path(self, uid: str) -> Path:
        """Where what scoring an instance gave is to stand."""
        return (self.scores / _file_name(uid)).with_suffix(".json")

    def note_scored(self, instances: Sequence[tuple[Waiting, str | None]]) -> None:
        """These have their scores in their files; with the reason why one is to be set aside once it is reported."""
        with self._turn, self._change() as db:
            for instance, reason in instances:
                db.execute(
                    "UPDATE instances SET state = 'scored', attempts = 0, reason = ?, changed = ? WHERE id = ?",
                    (reason, self._clock(), instance.id),
                )
            self._in_hand.difference_update(instance.id for instance, _ in instances)

    # Reporting

    def due(self) -> list[list[Scored]]:
        """Series that are complete and scored, as far as they have not been reported; not more at once than fits."""
        now = self._clock()
        with self._turn:
            complete = self._db.execute(
                "SELECT study, series FROM series s WHERE due <= ? "
                "AND EXISTS (SELECT 1 FROM instances i WHERE i.study = s.study AND i.series = s.series "
                "AND i.state = 'scored') "
                "AND NOT EXISTS (SELECT 1 FROM instances i WHERE i.study = s.study AND i.series = s.series "
                "AND i.state = 'waiting') ORDER BY due",
                (now,),
            ).fetchall()
            return [
                [
                    Scored(id, uid, self.files / _file_name(uid), self.scores_path(uid))
                    for id, uid in self._db.execute(
                        "SELECT id, uid FROM instances WHERE study = ? AND series = ? AND state = 'scored' "
                        "ORDER BY id LIMIT ?",
                        (study, series, SERIES_AT_ONCE),
                    )
                ]
                for study, series in complete
            ]

    def score_again(self, instances: Iterable[Scored]) -> None:
        """What scoring these gave is gone: they wait once more."""
        with self._turn, self._change() as db:
            numbers = [instance.id for instance in instances]
            self._each(db, "UPDATE instances SET state = 'waiting', reason = NULL WHERE id = ?", numbers)

    def report(self, instances: Sequence[Scored], objects: Sequence[Made], destinations: Sequence[str]) -> None:
        """Keep what was made of these instances until every destination has it. Raises QueueFull for a full disk."""
        places = [self.outbox / _file_name(each.uid) for each in objects]
        try:
            for place, each in zip(places, objects, strict=True):
                _write_synced(place, each.content)
            _sync_folder(self.outbox)
            with self._turn, self._change() as db:
                study, series = db.execute(
                    "SELECT study, series FROM instances WHERE id = ?", (instances[0].id,)
                ).fetchone()
                number = db.execute(
                    "INSERT INTO reports (study, series, made) VALUES (?, ?, ?)", (study, series, self._clock())
                ).lastrowid
                for each in objects:
                    self._queue_object(db, number, each, destinations)
                for instance in instances:
                    db.execute(
                        "UPDATE instances SET state = 'reported', report = ?, changed = ? WHERE id = ?",
                        (number, self._clock(), instance.id),
                    )
        except (OSError, sqlite3.OperationalError) as error:
            raise QueueFull(f"a report cannot be written: {_words(error)}") from error

    def set_aside(self, instance: Scored, reason: str) -> None:
        """This instance cannot be reported on: it stays until a person decides."""
        with self._turn, self._change() as db:
            db.execute(
                "UPDATE instances SET state = 'aside', reason = ?, changed = ? WHERE id = ?",
                (reason, self._clock(), instance.id),
            )

    # Delivering

    def deliveries(self, destination: str, most: int) -> list[Delivery]:
        """What is to be sent to a destination now, oldest first; nothing while the destination itself is given time."""
        now = self._clock()
        with self._turn:
            rest = self._found("SELECT next_try FROM destinations WHERE name = ?", destination)
            if rest is not None and rest[0] > now:
                return []
            rows = self._db.execute(
                "SELECT object, kind, uid, class, tries FROM deliveries JOIN objects ON objects.id = object "
                "WHERE destination = ? AND state = 'pending' AND next_try <= ? ORDER BY object LIMIT ?",
                (destination, now, most),
            ).fetchall()
        return [
            Delivery(object, kind, uid, sop_class, self.outbox / _file_name(uid), tries)
            for object, kind, uid, sop_class, tries in rows
        ]

    def delivered(self, delivery: Delivery, destination: str) -> None:
        """The destination has confirmed it. Where that was the last one, its images have reached their end."""
        with self._turn:
            row = self._found("SELECT report FROM objects WHERE id = ?", delivery.object)
            if row is None:  # a person has given it up meanwhile
                return
            with self._change() as db:
                self._settle(db, delivery, destination, "done", None)
                db.execute("DELETE FROM destinations WHERE name = ?", (destination,))
                over = self._finish(db, row[0])
            self._remove_objects(over)

    def postpone(self, delivery: Delivery, destination: str, reason: str, seconds: float) -> None:
        """The destination could not take it now; it is tried again after so many seconds."""
        with self._turn, self._change() as db:
            db.execute(
                "UPDATE deliveries SET tries = tries + 1, next_try = ?, reason = ? WHERE object = ? "
                "AND destination = ?",
                (self._clock() + seconds, reason, delivery.object, destination),
            )

    def refused(self, delivery: Delivery, destination: str, reason: str) -> None:
        """The destination will never take it: a person has to decide."""
        with self._turn, self._change() as db:
            self._settle(db, delivery, destination, "aside", reason)

    def unreachable_times(self, destination: str) -> int:
        """How often in a row a destination could not be reached."""
        row = self._found("SELECT tries FROM destinations WHERE name = ?", destination)
        return 0 if row is None else int(row[0])

    def unreachable(self, destination: str, reason: str, seconds: float) -> None:
        """A destination cannot be reached; it is given so many seconds."""
        with self._turn, self._change() as db:
            db.execute(
                "INSERT INTO destinations (name, tries, next_try, reason) VALUES (?, 1, ?, ?) ON CONFLICT (name) "
                "DO UPDATE SET tries = tries + 1, next_try = excluded.next_try, reason = excluded.reason",
                (destination, self._clock() + seconds, reason),
            )

    def set_aside_unknown(self, destinations: Sequence[str]) -> int:
        """Set aside what is to go to destinations that there are no more. How many deliveries that were."""
        unknown = f"state = 'pending' AND destination NOT IN ({','.join('?' * len(destinations))})"
        with self._turn, self._change() as db:
            return db.execute(
                f"UPDATE deliveries SET state = 'aside', reason = 'no longer configured' WHERE {unknown}",
                tuple(destinations),
            ).rowcount

    # Housekeeping

    def purge(self, *, keep_hours: float, remember_days: float) -> None:
        """Remove images whose report has arrived everywhere, and forget those of long ago."""
        now = self._clock()
        with self._turn:
            over = self._db.execute(
                "SELECT id, uid FROM instances WHERE state = 'done' AND filed = 1 AND changed <= ? LIMIT 1000",
                (now - keep_hours * HOUR,),
            ).fetchall()
            for _, uid in over:
                (self.files / _file_name(uid)).unlink(missing_ok=True)
                self.scores_path(uid).unlink(missing_ok=True)
            with self._change() as db:
                self._each(db, "UPDATE instances SET filed = 0 WHERE id = ?", [number for number, _ in over])
                db.execute(
                    "DELETE FROM instances WHERE state = 'done' AND filed = 0 AND changed <= ?",
                    (now - remember_days * DAY,),
                )
                db.execute(
                    "DELETE FROM series WHERE due <= ? AND NOT EXISTS (SELECT 1 FROM instances i "
                    "WHERE i.study = series.study AND i.series = series.series)",
                    (now,),
                )
                given_up = [uid for (number,) in self._open_reports(db) for uid in self._finish(db, number)]
                db.execute(
                    "DELETE FROM reports WHERE id NOT IN (SELECT report FROM objects) "
                    "AND id NOT IN (SELECT report FROM instances WHERE report IS NOT NULL)"
                )
            self._remove_objects(given_up)

    # Inside

    def _prepare(self, device_uid: Callable[[], str]) -> None:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found > FORMAT:
            raise SaqmError(f"{self.folder}: the queue of a newer saqm (format {found}); this one knows {FORMAT}")
        if not found:
            with self._change() as db:
                for statement in SCHEMA.split(";")[:-1]:
                    db.execute(statement)
                db.execute("INSERT INTO meta VALUES ('device_uid', ?)", (device_uid(),))
                db.execute(f"PRAGMA user_version = {FORMAT}")

    def _sweep(self) -> None:
        """Remove files that no row speaks of: what was being received, made or removed when the node ended."""
        filed = {_file_name(uid) for (uid,) in self._db.execute("SELECT uid FROM instances WHERE filed = 1")}
        queued = {_file_name(uid) for (uid,) in self._db.execute("SELECT uid FROM objects")}
        for folder, known in ((self.incoming, set[str]()), (self.files, filed), (self.outbox, queued)):
            for path in folder.iterdir():
                if path.name not in known:
                    path.unlink()
        for path in self.scores.iterdir():
            if f"{path.stem.partition('-')[0]}.dcm" not in filed:  # HASH.json, HASH-0.map
                path.unlink()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """A change of the database that is on the disk when this ends, or is none."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.OperationalError):  # a full disk may have rolled it back already
                self._db.execute("ROLLBACK")
            raise

    def _found(self, query: str, *values: object) -> tuple[Any, ...] | None:
        with self._turn:
            row: tuple[Any, ...] | None = self._db.execute(query, values).fetchone()
            return row

    def _one(self, query: str, *values: object) -> tuple[Any, ...]:
        row = self._found(query, *values)
        assert row is not None  # aggregates and meta always have one
        return row

    @staticmethod
    def _each(db: sqlite3.Connection, statement: str, numbers: Iterable[int]) -> None:
        db.executemany(statement, [(number,) for number in numbers])

    @staticmethod
    def _set_due(db: sqlite3.Connection, study: str, series: str, due: float) -> None:
        db.execute(
            "INSERT INTO series (study, series, due) VALUES (?, ?, ?) ON CONFLICT (study, series) "
            "DO UPDATE SET due = excluded.due",
            (study, series, due),
        )

    @staticmethod
    def _queue_object(db: sqlite3.Connection, report: int | None, made: Made, destinations: Sequence[str]) -> None:
        number = db.execute(
            "INSERT INTO objects (report, kind, uid, class) VALUES (?, ?, ?, ?)",
            (report, made.kind, made.uid, made.sop_class),
        ).lastrowid
        db.executemany(
            "INSERT INTO deliveries (object, destination) VALUES (?, ?)", [(number, name) for name in destinations]
        )

    @staticmethod
    def _settle(db: sqlite3.Connection, delivery: Delivery, destination: str, state: str, reason: str | None) -> None:
        db.execute(
            "UPDATE deliveries SET state = ?, tries = tries + 1, reason = ? WHERE object = ? AND destination = ?",
            (state, reason, delivery.object, destination),
        )

    @staticmethod
    def _open_reports(db: sqlite3.Connection) -> list[tuple[int]]:
        """Reports of which everything is delivered or given up, and which have not been brought to their end."""
        return db.execute(
            "SELECT DISTINCT report FROM objects o WHERE NOT EXISTS (SELECT 1 FROM deliveries "
            "JOIN objects ON objects.id = object WHERE objects.report = o.report AND state <> 'done')"
        ).fetchall()

    def _finish(self, db: sqlite3.Connection, report: int) -> list[str]:
        """Bring a report to its end if nothing of it is left to be delivered. The UIDs of objects no longer needed."""
        left = db.execute(
            "SELECT 1 FROM deliveries JOIN objects ON objects.id = object WHERE report = ? AND state <> 'done'",
            (report,),
        )
        if left.fetchone() is not None:
            return []
        db.execute(
            "UPDATE instances SET state = CASE WHEN reason IS NULL THEN 'done' ELSE 'aside' END, changed = ? "
            "WHERE state = 'reported' AND report = ?",
            (self._clock(), report),
        )
        over = [uid for (uid,) in db.execute("SELECT uid FROM objects WHERE report = ?", (report,))]
        db.execute("DELETE FROM deliveries WHERE object IN (SELECT id FROM objects WHERE report = ?)", (report,))
        db.execute("DELETE FROM objects WHERE report = ?", (report,))
        return over

    def _remove_objects(self, uids: Iterable[str]) -> None:
        """Remove files whose rows are gone; what a crash leaves of them, the sweep finds."""
        for uid in uids:
            (self.outbox / _file_name(uid)).unlink(missing_ok=True)


# What a person asks, also while the node runs


def status(folder: str | Path, *, now: float) -> dict[str, Any]:
    """What is in the queue of a folder: counts by state, each destination, and what was set aside with its reason.

    Raises SaqmError where there is no queue.
    """
    with _visited(folder) as db:
        instances = dict(db.execute("SELECT state, count(*) FROM instances GROUP BY state"))
        oldest = db.execute("SELECT min(received) FROM instances WHERE state IN ('waiting', 'scored')").fetchone()[0]
        destinations: dict[str, dict[str, Any]] = {}
        for name, state, count in db.execute(
            "SELECT destination, state, count(*) FROM deliveries GROUP BY destination, state"
        ):
            destinations.setdefault(name, {"pending": 0, "aside": 0})
            if state != "done":  # of objects that wait for another destination
                destinations[name][state] = count
        for name, tries, next_try, reason in db.execute("SELECT * FROM destinations"):
            told = {"unreachable": tries, "reason": reason, "next_try_seconds": round(max(0.0, next_try - now), 1)}
            destinations.setdefault(name, {"pending": 0, "aside": 0}).update(told)
        aside = [
            {"instance": uid, "reason": reason}
            for uid, reason in db.execute("SELECT uid, reason FROM instances WHERE state = 'aside' ORDER BY id")
        ] + [
            {"object": uid, "kind": kind, "destination": destination, "reason": reason}
            for uid, kind, destination, reason in db.execute(
                "SELECT uid, kind, destination, reason FROM deliveries JOIN objects ON objects.id = object "
                "WHERE state = 'aside' ORDER BY object"
            )
        ]
        device = db.execute("SELECT value FROM meta WHERE name = 'device_uid'").fetchone()[0]
    return {
        "running": _is_locked(Path(folder)),
        "device_uid": device,
        "instances": {state: instances.get(state, 0) for state in ("waiting", "scored", "reported", "done", "aside")},
        "oldest_seconds": None if oldest is None else round(max(0.0, now - oldest), 1),
        "destinations": destinations,
        "aside": aside,
    }


def retry(folder: str | Path, *, now: float) -> int:
    """Put what was set aside back: instances are scored again, objects sent again. How many that were."""
    with _visited(folder) as db, db:
        db.execute("DELETE FROM destinations")
        db.execute("UPDATE deliveries SET next_try = 0 WHERE state = 'pending'")
        sent = db.execute(
            "UPDATE deliveries SET state = 'pending', next_try = 0, reason = NULL WHERE state = 'aside'"
        ).rowcount
        again = db.execute(
            "UPDATE instances SET state = 'waiting', attempts = 0, reason = NULL, changed = ? WHERE state = 'aside'",
            (now,),
        ).rowcount
        return int(sent + again)


def forget(folder: str | Path) -> int:
    """Give up what was set aside: instances, and objects that a destination refused. How many that were.

    Their files go when the node next looks after its folder.
    """
    with _visited(folder) as db, db:
        sent = db.execute("UPDATE deliveries SET state = 'done' WHERE state = 'aside'").rowcount
        given_up = db.execute("UPDATE instances SET state = 'done', reason = NULL WHERE state = 'aside'").rowcount
        return int(sent + given_up)


def database_path(folder: Path) -> Path:
    """Where the database of a queue stands; to be backed up with SQLite's own .backup while the node runs."""
    return folder / "queue.sqlite"


def free_bytes(folder: Path) -> int:
    """What the disk of a folder has left."""
    return shutil.disk_usage(folder).free


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    os.chmod(path, 0o600)
    return db


@contextmanager
def _visited(folder: str | Path) -> Iterator[sqlite3.Connection]:
    """The database of a queue that another process may have open."""
    path = database_path(Path(folder))
    if not path.is_file():
        raise SaqmError(f"{folder}: no queue of a node here")
    db = sqlite3.connect(path, timeout=30)
    try:
        db.execute("PRAGMA synchronous = FULL")
        yield db
    finally:
        db.close()


def _locked(folder: Path) -> IO[bytes]:
    """The lock of a folder. Raises SaqmError where somebody has it."""
    stream = (folder / "lock").open("ab")
    for _ in range(LOOKS):  # somebody who asks for the status has it for an instant
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return stream
        except BlockingIOError:
            Event().wait(0.1)
    stream.close()
    raise SaqmError(f"{folder}: another node has this folder; stop it, or give this one its own")


def _is_locked(folder: Path) -> bool:
    with (folder / "lock").open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _file_name(uid: str) -> str:
    """A name that is made from a UID and cannot be anything but a file in its folder."""
    return f"{hashlib.sha256(uid.encode()).hexdigest()[:40]}.dcm"


def _write_synced(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".part")
    try:
        with beside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _words(error: OSError | sqlite3.Error) -> str:
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
