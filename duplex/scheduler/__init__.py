"""The deadline scheduler: one thread owns the device and steps every call in one batched tick."""

from .contract import Codes, Engine, Memory, SlotFrame, SlotResult, SlotSettings, StepTimes
from .deliveries import Deliver, Delivery, Dropped, Ended, Inbox, Ready, Stepped
from .metrics import SchedulerMetrics
from .options import SchedulerOptions, ShedOptions
from .scheduler import Scheduler
from .session import SchedulerSession

__all__ = [
    "Codes",
    "Deliver",
    "Delivery",
    "Dropped",
    "Ended",
    "Engine",
    "Inbox",
    "Memory",
    "Ready",
    "Scheduler",
    "SchedulerMetrics",
    "SchedulerOptions",
    "SchedulerSession",
    "ShedOptions",
    "SlotFrame",
    "SlotResult",
    "SlotSettings",
    "StepTimes",
    "Stepped",
]
