"""The images that a deployment needs, built from what lies here."""
