"""What happened to loss and accuracy, and why: events with ranked causes, from plain numbers.

`changes` and `states` decide which events hold, `catalogue` which causes are asked for each of them; the causes stand
under five headings, one file each: `confidence`, `generalisation`, `data`, `optimisation`, `measurement`. `engine`
decides what is new and worth a report; `message` finds the words.
"""

from lightning_lossacc.diagnosis.engine import Diagnosis as Diagnosis
from lightning_lossacc.diagnosis.event import Cause as Cause
from lightning_lossacc.diagnosis.event import Event as Event
