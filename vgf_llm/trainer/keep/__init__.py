# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Earlier rounds: the buffer, what rewards each prompt has had, and what the next fit draws from both."""
