# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""The losses of a round on micro-batches whose rows carry all that they need of their group."""
