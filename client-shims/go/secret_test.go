package keyhatch
