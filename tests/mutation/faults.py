"""All deliberate faults, each one edit: file, old text, new text, and the component whose laws must notice.

To add one: append a line to a list in core_faults.py or plugin_faults.py; `old` must occur exactly once in the file.
Where it comes from is told in the comments: identities K and L, pains, or the list of the issue.
"""

from core_faults import CORE_FAULTS
from plugin_faults import PLUGIN_FAULTS

FAULTS = (*PLUGIN_FAULTS, *CORE_FAULTS)
