"""The file of votes: SQLite, so that several raters vote at once, each vote is there once, and none is lost."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from dream4d.evaluate.study.design import Trial

_TABLES = """
CREATE TABLE IF NOT EXISTS study (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    fingerprint TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS raters (
    rater TEXT PRIMARY KEY,
    questions INTEGER NOT NULL,
    started TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS votes (
    rater TEXT NOT NULL REFERENCES raters ON DELETE CASCADE,
    number INTEGER NOT NULL CHECK (number >= 0),
    question TEXT NOT NULL,
    prompt TEXT NOT NULL,
    seed INTEGER NOT NULL,
    shown TEXT NOT NULL,
    place INTEGER NOT NULL CHECK (place >= 0),
    choice TEXT NOT NULL,
    passed INTEGER CHECK (passed IN (0, 1)),
    time TEXT NOT NULL,
    PRIMARY KEY (rater, number)) WITHOUT ROWID;
"""


class Vote(NamedTuple):
    """rater: a random code. number: of the rater's trial, from 0. shown: the variants in the order of their places.
    place: the one chosen. passed: whether an attention check was; None in a real question. time: UTC."""

    rater: str
    number: int
    question: str
    prompt: str
    seed: int
    shown: tuple[str, ...]
    place: int
    choice: str
    passed: bool | None
    time: str


class ConflictError(Exception):
    """A vote that does not go with those that are there."""


class Votes:
    """The votes of one study in `file`; any number of threads may use one.

    create: make the file where it is missing.

    Raises ValueError for a file that is missing, is something else or cannot be written.
    """

    def __init__(self, file: str | Path, *, create: bool = False):
        self.file = Path(file)
        if not create and not self.file.is_file():
            raise ValueError(f"there are no votes in {self.file}: collect some with `dream4d study serve`")
        try:
            with self._connect() as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_TABLES)
        except sqlite3.Error as error:
            raise ValueError(f"cannot keep votes in {self.file}: {error}; choose another --votes") from None

    def belong_to(self, fingerprint: str) -> None:
        """Tie the file to a study. Raises ValueError where it has votes on another one."""
        with self._connect() as connection:
            connection.execute("INSERT OR IGNORE INTO study VALUES (1, ?)", (fingerprint,))
            (there,) = connection.execute("SELECT fingerprint FROM study").fetchone()
        if there != fingerprint:
            raise ValueError(
                f"{self.file} has votes on other videos or questions: serve those, or choose another --votes"
            )

    def add_rater(self, questions: int) -> str:
        """A new rater, who will be asked so many. Returns a secret that only the rater has; the file has its code."""
        secret = secrets.token_urlsafe(32)
        with self._connect() as connection:
            connection.execute("INSERT INTO raters VALUES (?, ?, ?)", (code(secret), questions, _now()))
        return secret

    def knows(self, rater: str) -> bool:
        with self._connect() as connection:
            return connection.execute("SELECT 1 FROM raters WHERE rater = ?", (rater,)).fetchone() is not None

    def count(self, rater: str) -> int:
        """Votes of `rater`, which is also the number of the trial that comes next."""
        with self._connect() as connection:
            return _count(connection, rater)

    def add(self, rater: str, number: int, trial: Trial, place: int) -> None:
        """Store the choice of `place` in trial `number`; again, it changes nothing.

        Raises ConflictError where the trial has another vote, or is not the next; nothing is stored then.
        """
        passed = None if trial.right is None else place == trial.right
        shown = json.dumps([video.variant for video in trial.videos])
        row = (rater, number, trial.question, *trial.case, shown, place, trial.videos[place].variant, passed, _now())
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            there = connection.execute("SELECT place FROM votes WHERE rater = ? AND number = ?", row[:2]).fetchone()
            if there is None and _count(connection, rater) == number:
                connection.execute(f"INSERT INTO votes VALUES ({', '.join('?' * len(row))})", row)
            elif there is None:
                raise ConflictError("This question has not been asked yet.")
            elif there != (place,):
                raise ConflictError("This question has been answered already; the first answer stands.")

    def forget(self, rater: str) -> int:
        """Delete a rater and the votes. Returns how many there were. Raises ValueError for an unknown one."""
        if not self.knows(rater):
            raise ValueError(f"there is no rater {rater!r}; `dream4d study results` lists who voted")
        count = self.count(rater)
        with self._connect() as connection:
            connection.execute("DELETE FROM raters WHERE rater = ?", (rater,))
        return count

    def all(self) -> list[Vote]:
        """Every vote, by rater and number."""
        with self._connect() as connection:
            rows = connection.execute("SELECT * FROM votes ORDER BY rater, number").fetchall()
        return [_vote(*row) for row in rows]

    def raters(self) -> dict[str, int]:
        """Everyone who began, and how much each was to be asked."""
        with self._connect() as connection:
            return dict(connection.execute("SELECT rater, questions FROM raters ORDER BY started"))

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own for each thread and use: committed on success, rolled back on failure, closed."""
        connection = sqlite3.connect(self.file, timeout=20, isolation_level=None)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            yield connection
            if connection.in_transaction:
                connection.commit()
        finally:
            connection.close()


def code(secret: str) -> str:
    """The rater that has `secret`; it cannot be turned back."""
    return sha256(secret.encode()).hexdigest()[:12]


def _vote(*row: Any) -> Vote:
    vote = Vote(*row)
    return vote._replace(shown=tuple(json.loads(row[5])), passed=None if vote.passed is None else bool(vote.passed))


def _count(connection: sqlite3.Connection, rater: str) -> int:
    count: int = connection.execute("SELECT count(*) FROM votes WHERE rater = ?", (rater,)).fetchone()[0]
    return count


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
