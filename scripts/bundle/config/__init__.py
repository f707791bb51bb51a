"""What an env file means: its lines, the engine's flag catalogue, the bundle's own keys, verdicts, contradictions, and Settings."""
