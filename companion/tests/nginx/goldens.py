"""The golden deployments, before the judge that counts: nginx itself, with the module."""

import bed


def check_golden_deployments_pass_nginx():
    """every golden deployment passes `nginx -t` with the module"""
    bed.fixed_folder()
    deployments = sorted((bed.TESTS / "deployments").glob("*.toml"))
    assert len(deployments) >= 12, len(deployments)
    with bed.folder() as prefix:
        nginx = bed.wrapped_nginx(prefix)
        for deployment in deployments:
            out, err = bed.companion("check", "-d", deployment, "--nginx", nginx)
            assert "test is successful" in out, (deployment, out, err)
            assert "[warn]" not in out, (deployment, out)
    return f"{len(deployments)} deployments"


def check_a_refused_configuration_says_why():
    """a configuration that nginx refuses ends with its reason and what to do"""
    with bed.folder() as prefix:
        deployment = prefix / "deployment.toml"
        deployment.write_text(
            '[main]\nhost = "127.0.0.1"\nport = 20108\n[listen]\nclient = [20000]\n'
            'certificate = "/nowhere/matrix.pem"\ncertificate_key = "/nowhere/matrix.key"\n')
        _, err = bed.companion("check", "-d", deployment, "--nginx", bed.wrapped_nginx(prefix), expect=2)
        assert "cannot load certificate" in err and "fix: name a certificate" in err, err


def check_an_nginx_too_old_is_refused():
    """names of workers with an nginx that cannot resolve them are refused, and --no-resolve renders plain names"""
    compose = bed.TESTS / "deployments" / "compose.toml"
    _, err = bed.companion("render", "-d", compose, "--nginx-version", "1.26.3", expect=2)
    assert "1.27.3" in err and "--no-resolve" in err, err
    out, _ = bed.companion("render", "-d", compose, "--nginx-version", "1.26.3", "--no-resolve")
    assert "server sync1:8083 max_fails=0;" in out and " resolve" not in out.replace("resolved", ""), out
