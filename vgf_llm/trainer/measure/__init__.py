# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
"""What training reports, and whether the value ranks completions of prompts that it does not train on."""
