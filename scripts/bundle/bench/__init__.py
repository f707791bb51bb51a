"""Measuring what each setting is worth: one module per arrow of the way from env/matrix.yaml to reports/<run>/."""
