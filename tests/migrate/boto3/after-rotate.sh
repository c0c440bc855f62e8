keyhatch bridge -- python3 rotate.py
