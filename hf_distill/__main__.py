"""``python -m hf_distill``, also under ``accelerate launch -m`` and ``torchrun -m``."""

import sys

from hf_distill.cli import main

sys.exit(main())
