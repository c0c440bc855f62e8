bao kv get -mount=secret -field=key app/api
