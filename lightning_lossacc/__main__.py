"""`python -m lightning_lossacc` is `lossacc`."""

from __future__ import annotations

import sys

from lightning_lossacc.cli import main

sys.exit(main())
