module github.com/keyhatch/keyhatch/client-shims/go

go 1.21
