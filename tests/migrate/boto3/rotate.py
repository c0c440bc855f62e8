import subprocess

subprocess.run(["aws", "secretsmanager", "rotate-secret", "--secret-id", "MySecretId"], check=True)
