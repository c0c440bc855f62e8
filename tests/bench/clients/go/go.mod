module github.com/keyhatch/keyhatch/tests/bench/clients/go

go 1.21

require github.com/keyhatch/keyhatch/client-shims/go v0.0.0

replace github.com/keyhatch/keyhatch/client-shims/go => ../../../../client-shims/go
