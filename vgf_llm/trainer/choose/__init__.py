# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""Which prompts a round takes, who samples their completions, and logged completions as rounds."""
