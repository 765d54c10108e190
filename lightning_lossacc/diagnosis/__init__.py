"""What happened to loss and accuracy, and why: events with ranked causes, from plain numbers.

One file a heading: `confidence` (over-confidence, mixed, scale-growth, confidence-growth) and `generalisation`
(overfitting); `engine` decides when an event opens, doubles and closes; `message` finds the words.
"""

from lightning_lossacc.diagnosis.engine import Diagnosis as Diagnosis
from lightning_lossacc.diagnosis.event import Cause as Cause
from lightning_lossacc.diagnosis.event import Event as Event
