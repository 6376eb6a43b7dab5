"""Stores for what programs keep in a folder: typed, locked, crash-safe, on any filesystem.

They need no mount and import nothing of the engine; in a mounted state they use its snapshots in
place of copies. docs/state-stores.md describes them and what they write.
"""

from statefs.state.encrypted_store import EncryptedJsonStore
from statefs.state.json_store import DocumentType, JsonStore
from statefs.state.keyring import Key, make_key_file
from statefs.state.session_documents import (
    CodeBlock,
    ErrorBlock,
    FileBlock,
    ImageBlock,
    Session,
    SessionEntry,
    StatusBlock,
    TextBlock,
    ToolBlock,
    Turn,
    Usage,
)
from statefs.state.session_manager import Scope, SessionManager
from statefs.state.task_async import AsyncStatePersistence
from statefs.state.task_documents import Report, Task, TaskMetrics, TaskState, WorkSession
from statefs.state.task_health import PersistenceMetrics, TaskLimits
from statefs.state.task_migration import rollback_migration
from statefs.state.task_persistence import StatePersistence

__all__ = [
    "AsyncStatePersistence",
    "CodeBlock",
    "DocumentType",
    "EncryptedJsonStore",
    "ErrorBlock",
    "FileBlock",
    "ImageBlock",
    "JsonStore",
    "Key",
    "PersistenceMetrics",
    "Report",
    "Scope",
    "Session",
    "SessionEntry",
    "SessionManager",
    "StatePersistence",
    "StatusBlock",
    "Task",
    "TaskLimits",
    "TaskMetrics",
    "TaskState",
    "TextBlock",
    "ToolBlock",
    "Turn",
    "Usage",
    "WorkSession",
    "make_key_file",
    "rollback_migration",
]
