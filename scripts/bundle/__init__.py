"""What the verbs in scripts/ share: one module per arrow of the data's way (see README.md)."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The bundle's folder: compose.yaml, env/ and docker/ lie here."""

STATE = ROOT / ".state"
"""What `make up` derived and deployed; everything in it can be made again from the env files."""
