"""A queue of candidates in a folder, which a study's process and workers on any machine share.

`QueueEvaluator` is the study's end, `QueueWorker` the other: the command `evomerge worker DIR`. What lies in the folder, and the
rules by which it moves, are in `evomerge.evaluate.folder_queue.folder`.
"""

from evomerge.evaluate.folder_queue.evaluator import QueueEvaluator
from evomerge.evaluate.folder_queue.folder import Opened, QueueFolder
from evomerge.evaluate.folder_queue.worker import QueueWorker

__all__ = ["Opened", "QueueEvaluator", "QueueFolder", "QueueWorker"]
