"""Is the engine alive? Its API process answers, and knows of no dead core. Exit 0, or 1 with the reason in one line.

A core that hangs is alive: ready.py and progress.py are there for that.
"""

import engine


def check() -> str:
    engine.alive(engine.timeout_s())
    return "alive"


if __name__ == "__main__":
    engine.main(check)
