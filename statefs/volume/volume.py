"""The living tree of a store: names, attributes and content over one table of inodes."""

from __future__ import annotations

from statefs.clock import Clock
from statefs.content.objects import ObjectFiles
from statefs.metadata.connection import Database
from statefs.volume.attributes import Attributes
from statefs.volume.data import FileData
from statefs.volume.names import Names
from statefs.volume.table import InodeTable


class Volume:
    """A POSIX tree. Synchronous and used from one thread; a call is one critical section.

    Args:
        database: the store's database, recovered.
        objects: the store's object files.
        clock: where times come from.
        follows_another: an earlier process served the mount, which goes on (`InodeTable`).
    """

    def __init__(
        self, database: Database, objects: ObjectFiles, clock: Clock, follows_another: bool = False
    ) -> None:
        self.table = InodeTable(database, objects, clock, follows_another)
        self.attributes = Attributes(self.table)
        self.names = Names(self.table)
        self.data = FileData(self.table, self.attributes)
