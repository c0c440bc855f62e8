auto_auth {
  method "token_file" {
    config = { token_file_path = "token" }
  }
}
template {
  source      = "bot.ini.ctmpl"
  destination = "bot.ini"
}
