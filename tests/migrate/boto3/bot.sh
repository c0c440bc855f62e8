aws secretsmanager get-secret-value --secret-id MySecretId --query SecretString --output text
aws secretsmanager batch-get-secret-value --secret-id-list MySecretId --query 'SecretValues[].Name' --output text
aws secretsmanager list-secrets --query 'SecretList[].Name' --output text
aws secretsmanager describe-secret --secret-id MySecretId --query Name --output text
