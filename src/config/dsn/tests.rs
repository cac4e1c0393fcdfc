use super::*;

fn parsed(text: &str) -> Endpoint {
    parse(Role::Source, text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The error of a connection string in which every password begins with `pw`.
fn refused(text: &str) -> DsnError {
    let error = parse(Role::Source, text).expect_err(text);
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("pw"), "{text} shows its password: {shown}");
    error
}

fn password(text: &str) -> String {
    parsed(text).password.unwrap().expose().to_owned()
}

#[test]
fn both_forms_give_the_same_endpoint() {
    let expected = Endpoint {
        role: Role::Source,
        host: Host::Tcp("localhost".into()),
        port: 5433,
        dbname: "my shop".into(),
        user: "me".into(),
        password: Some(Secret::new("p@ 'x\\".into())),
        tls: TlsMode::Disable,
        connect_timeout: Duration::from_secs(3),
        tcp_user_timeout: Duration::from_secs(30),
        application_name: "copy".into(),
    };
    for text in [
        r"host=localhost port=5433 dbname='my shop' user=me password='p@ \'x\\' connect_timeout=3 application_name=copy",
        "\n host = localhost\tport\n=\n5433 user= 'me' dbname=my\\ shop password=p@\\ \\'x\\\\ connect_timeout=3 application_name=copy ",
        "postgresql://me:p%40%20'x%5c@localhost:5433/my%20shop?connect_timeout=3&application_name=copy",
        "postgres://?host=localhost&port=5433&dbname=my%20shop &user=me&password=p%40%20'x\\&connect_timeout=3&%61pplication_name=copy",
    ] {
        assert_eq!(parsed(text), expected, "{text}");
    }
}

#[test]
fn defaults_are_those_of_libpq() {
    let endpoint = parsed("host=127.1.2.3 user=me port='' dbname='' password='' sslmode=''");
    assert_eq!((endpoint.port, endpoint.dbname.as_str(), endpoint.password), (5432, "me", None));
    assert_eq!((endpoint.connect_timeout.as_secs(), endpoint.application_name.as_str()), (10, "pgsluice"));
    assert_eq!(parsed("postgres://me@localhost").dbname, "me");
    assert_eq!(parsed("postgres://me@localhost/?").dbname, "me");
    assert_eq!(parsed("host=localhost user=a user=b").user, "b");
    assert_eq!(parsed("postgres://me@h/d?host=/run&dbname=e").address(), "/run/.s.PGSQL.5432");
}

#[test]
fn quoting_is_that_of_libpq() {
    for (text, expected) in [
        ("password='a b'", "a b"),
        (r"password='a\'b\\c\d'", r"a'b\cd"),
        (r"password=a\ b\'", "a b'"),
        ("password=it's", "it's"),
        ("password=a=b", "a=b"),
        ("password = a=b", "a=b"),
        (r"password=a\", "a"),
        ("password='a'port=1", "a"),
        ("password=' '", " "),
    ] {
        assert_eq!(password(&format!("host=/s user=u {text}")), expected, "{text}");
    }
    assert_eq!(password("postgres://u:a:b?c@localhost"), "a:b?c");
    assert_eq!(password("postgres://u:%C3%BC%25+@localhost"), "ü%+");
    assert_eq!(password("postgres://u@localhost?password=a%26b"), "a&b");
}

#[test]
fn hosts() {
    for (text, address) in [
        ("host=LocalHost", "LocalHost:5432"),
        ("host=::1 port=6000", "[::1]:6000"),
        ("postgres://[::1]:6000/d?user=u", "[::1]:6000"),
        ("postgres://[::1]?user=u", "[::1]:5432"),
        ("host=/var/run/postgresql", "/var/run/postgresql/.s.PGSQL.5432"),
        ("postgres://%2Frun:7/d?user=u", "/run/.s.PGSQL.7"),
        ("host=db.example.com hostaddr=127.0.0.1", "127.0.0.1:5432"),
        ("host=fe80::1%eth0 sslmode=disable", "[fe80::1%eth0]:5432"),
    ] {
        let text = if text.starts_with("host") { format!("{text} user=u") } else { text.to_owned() };
        assert_eq!(parsed(&text).address(), address);
    }
    for (text, error) in [
        ("user=u", DsnError::NoHost),
        ("", DsnError::NoHost),
        ("postgres:///d?user=u", DsnError::NoHost),
        ("host=localhost", DsnError::NoUser),
        ("postgres://:pw@localhost", DsnError::NoUser),
        ("host=a,b user=u", DsnError::SeveralHosts),
        ("host=a port=1,2 user=u", DsnError::SeveralHosts),
        ("postgres://u@a:1,b:2/d", DsnError::SeveralHosts),
        ("postgres://u@[::1],[::2]/d", DsnError::SeveralHosts),
        ("host=@pg user=u", DsnError::AbstractSocket),
        ("host=db:5432 user=u", DsnError::Host),
        ("host='a b' user=u", DsnError::Host),
        ("hostaddr=localhost user=u", DsnError::HostAddr),
        ("postgres://u@[::1/d", DsnError::Bracket),
        ("postgres://u@[::1]5432/d", DsnError::Bracket),
    ] {
        assert_eq!(refused(text), error, "{text}");
    }
}

#[test]
fn numbers_are_bounded() {
    for port in ["0", "65536", "-1", "x", "1 2"] {
        assert_eq!(refused(&format!("host=/s user=u port='{port}'")), DsnError::Port);
    }
    for seconds in ["0", "-1", "3601", "10s"] {
        assert_eq!(refused(&format!("host=/s user=u connect_timeout={seconds}")), DsnError::ConnectTimeout);
    }
}

#[test]
fn sslmode_has_the_meaning_of_libpq_as_far_as_it_goes_without_tls() {
    let modes = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
    for (host, without_mode, plain_modes) in
        [("/s", true, 6), ("localhost", true, 3), ("db", false, 3), ("10.0.0.1", false, 3)]
    {
        assert_eq!(parse(Role::Target, &format!("host={host} user=u")).is_ok(), without_mode, "{host}");
        for (index, mode) in modes.iter().enumerate() {
            let result = parse(Role::Target, &format!("host={host} user=u sslmode={mode}"));
            assert_eq!(result.is_ok(), index < plain_modes, "{host} {mode}");
        }
    }
    assert_eq!(
        refused("postgres://u:pw@db.example.com/d").to_string(),
        "TLS is not available in this version; a connection to db.example.com would be sslmode=verify-full. Set \
         sslmode=disable only on a network you trust"
    );
    assert!(refused("host=db user=u sslmode=require").to_string().contains("would be sslmode=require."));
    assert_eq!(refused("host=/s user=u sslmode=on"), DsnError::SslMode);
    for mode in modes {
        assert!(DsnError::SslMode.to_string().contains(mode));
    }
    assert_eq!(refused("host=db user=u sslmode=disable sslrootcert=/ca"), DsnError::SslRootCert);
}

#[test]
fn keywords_without_effect_are_told_from_misspelt_ones() {
    assert_eq!(refused("host=/s passfile=/p"), DsnError::NotSupported("passfile"));
    assert_eq!(refused("postgres://u@h/d?target_session_attrs=any"), DsnError::NotSupported("target_session_attrs"));
    for (word, meant) in
        [("usr", "user"), ("username", "user"), ("db", "dbname"), ("sslmod", "sslmode"), ("pasword", "password")]
    {
        let message = refused(&format!("host=/s {word}=x")).to_string();
        assert_eq!(message, format!("`{word}` is not a keyword of libpq; did you mean `{meant}`?"));
    }
    assert!(refused("host=/s zzz=x").to_string().contains("supported are host, hostaddr, port,"));
    assert!(KEYWORDS_WITHOUT_EFFECT.iter().all(|keyword| !KEYWORDS.contains(keyword)));
}

#[test]
fn broken_text_is_refused_and_no_password_shown() {
    let unknown = |position, nearest| DsnError::UnknownKeyword { position, keyword: None, nearest };
    for (text, error) in [
        ("pw", DsnError::NoEquals { position: 1 }),
        ("host=/s password=x pw", DsnError::NoEquals { position: 3 }),
        ("host=/s password=x pw user=u", DsnError::NoEquals { position: 3 }),
        ("host=/s password=x pw=y user=u", unknown(3, Some("password"))),
        ("host=/s password=x pwsslmode=y user=u", unknown(3, Some("sslmode"))),
        ("host=/s user=u password='pw", DsnError::Unterminated),
        (r"host=/s user=u password='pw\'", DsnError::Unterminated),
        ("host=/s user= password=pw", DsnError::NoValue { keyword: "user" }),
        ("host= password = pw user=u", DsnError::NoValue { keyword: "host" }),
        ("host=/s user=u password=pw\0", DsnError::ZeroByte),
        ("postgres://u:pw%00@localhost", DsnError::ZeroByte),
        ("postgres://u:pw@pw2@localhost/d", DsnError::AtSign),
        ("postgres://u:pw/pw@localhost/d", DsnError::AtSign),
        ("postgres://localhost/d/pw", DsnError::AtSign),
        ("postgres://u:pw/d", DsnError::Port),
        ("postgres://u:pw pw@localhost", DsnError::Space),
        ("postgres://u:pw%2@localhost", DsnError::Percent),
        ("postgres://u:pw%+1@localhost", DsnError::Percent),
        ("postgres://u:pw%@localhost", DsnError::Percent),
        ("postgres://u:pw%FF@localhost", DsnError::Percent),
        ("postgres://u:pw%ü@localhost", DsnError::Percent),
        ("postgres://u@localhost?password=pw=", DsnError::Parameter { position: 1 }),
        ("postgres://u@localhost?password=x&pw", DsnError::Parameter { position: 2 }),
        ("postgres://u@localhost?password=x&pw=1", unknown(2, Some("password"))),
        ("postgre://u:pw@localhost/d?sslmode=disable", unknown(1, None)),
    ] {
        assert_eq!(refused(text), error, "{text}");
    }
}
