"""Stores for what programs keep in a folder: typed, locked, crash-safe, on any filesystem.

They need no mount and import nothing of the engine; in a mounted state they use its snapshots in
place of copies. docs/state-stores.md describes them and what they write.
"""

from statefs.state.audit import Action, Unfinished
from statefs.state.deploy_documents import Target
from statefs.state.deploy_state import DeployBackend, DeployState, Found, Resource
from statefs.state.encrypted_store import EncryptedJsonStore
from statefs.state.journaled_session import JournaledSession
from statefs.state.json_store import DocumentType, JsonStore
from statefs.state.keyring import Key, make_key_file
from statefs.state.operation_lock import OperationLock
from statefs.state.secret_values import without_secrets
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
from statefs.state.session_recovery import Event, Recovery
from statefs.state.session_store import SessionState, SessionStore
from statefs.state.task_async import AsyncStatePersistence
from statefs.state.task_documents import Report, Task, TaskMetrics, TaskState, WorkSession
from statefs.state.task_health import PersistenceMetrics, TaskLimits
from statefs.state.task_migration import rollback_migration
from statefs.state.task_persistence import StatePersistence

__all__ = [
    "Action",
    "AsyncStatePersistence",
    "CodeBlock",
    "DeployBackend",
    "DeployState",
    "DocumentType",
    "EncryptedJsonStore",
    "ErrorBlock",
    "Event",
    "FileBlock",
    "Found",
    "ImageBlock",
    "JournaledSession",
    "JsonStore",
    "Key",
    "OperationLock",
    "PersistenceMetrics",
    "Recovery",
    "Report",
    "Resource",
    "Scope",
    "Session",
    "SessionEntry",
    "SessionManager",
    "SessionState",
    "SessionStore",
    "StatePersistence",
    "StatusBlock",
    "Target",
    "Task",
    "TaskLimits",
    "TaskMetrics",
    "TaskState",
    "TextBlock",
    "ToolBlock",
    "Turn",
    "Unfinished",
    "Usage",
    "WorkSession",
    "make_key_file",
    "rollback_migration",
    "without_secrets",
]
