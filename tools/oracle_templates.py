#!/usr/bin/env python3
"""Whether Python's jinja2 and transformers still render what the goldens of chat templates say: those of this
project, and where ../shared/data/chat_templates is, the real ones."""
import os
import sys

import make_template_goldens

if __name__ == "__main__":
    sys.argv = [sys.argv[0], "--check"]
    code = make_template_goldens.main()
    found = os.path.isdir(os.path.join(make_template_goldens.ROOT, "../shared/data/chat_templates"))
    if code == 0:
        print("goldens of templates: as Python renders them" + ("" if found else ", but no real templates here"))
    sys.exit(code)
