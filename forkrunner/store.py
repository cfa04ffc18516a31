"""All access to the tables: one method for each thing that is done with them; their only door.

It has two sides. Supervisors work on rows in supervising.py (role "supervisor": one thread, one connection, no call may
hang); whatever enqueues or asks is served in asking.py (role "client": web processes, threads, the command line). Both
stand on access.py, the way to the database. Never used by a mold or a child on the way of a job.

What always holds:

1. Every method is one transaction or one statement; none is open when a method returns.
2. Every write may be repeated: it is guarded by the row's state, or by its id. So an error during a commit, which
   leaves open whether it happened, is answered by doing the same again; after a claim, by `busy`.
3. A busy row is changed only under its fence: id, attempt, state, supervisor (`finish`, `release`), except that
   `cancel`, `pause` and `resume` leave their wishes on it.
4. Times are compared by one clock: the database's, which for SQLite is the host's.
5. Nothing belongs to the session, so everything works through PgBouncer in transaction mode.
6. A connection is never used, closed or collected in another process than the one that opened it.

The statements are the same on both databases; what differs is in sqlite.py and postgresql.py. A batch travels as one bound JSON
text, so that a statement is constant, is compiled once, and costs one round trip whatever the size of the batch.

Measured on 2 cores, Python 3.11, a turn of 16 endings and 16 claims with 10,000 rows pending, of which client CPU:

    PostgreSQL 15, Unix socket, fsync off   2.5 ms   0.08 ms a job
    SQLite 3.40, WAL                        1.9 ms   0.12 ms a job, the database's own work included
"""

from __future__ import annotations

from .asking import Asking
from .supervising import Supervising


class Store(Supervising, Asking):
    """The jobs, attempts and supervisors of one database.

    Connects at the first use. The role "client" may be used by several threads; the role "supervisor" belongs to the
    main thread of its process, and none of its calls takes longer than `timeout` seconds (on SQLite none waits
    longer than 50 ms for the lock).

    Every method raises StoreUnavailable when the database is away, silent or locked: the same call may be made again.
    `.busy` is True on it if an SQLite file is locked, which is over in a moment. SchemaError: the tables are
    missing or another release's. StoreError: anything else that the database refuses.
    """
