"""One lock for what changes the process while it works, and would mislead other threads that do the same.

Tracing replaces methods of torch's classes, exporting sets torch's flags and silences warnings, comparing seeds the
random numbers, and plugins register while they are imported. A process forks only between such times: the child would
inherit the change, and nobody to undo it.
"""

import os
import threading

PROCESS_LOCK = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=PROCESS_LOCK.acquire, after_in_parent=PROCESS_LOCK.release, after_in_child=PROCESS_LOCK.release
    )
