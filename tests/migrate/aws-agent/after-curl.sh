curl -s --unix-socket /run/keyhatch/keyhatch.sock 'http://keyhatch/secretsmanager/get?secretId=MySecretId'
