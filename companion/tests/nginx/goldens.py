"""The golden deployments, before the judge that counts: nginx itself, with the module."""

import re
import subprocess
from pathlib import Path

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


# Debian bookworm's own nginx, with the module that scripts/build debian makes for it.
DEBIAN = Path("/usr/sbin/nginx")
DEBIAN_MODULE = bed.ROOT / "build" / "debian" / "ngx_http_matrix_user_hash_module.so"
# In a mount namespace, names of workers are names of this machine.
WITH_NAMES = """
mount --make-rprivate /
printf '127.0.0.1 localhost synapse sync1 sync2 media1\\n' >"$1/hosts"
mount --bind "$1/hosts" /etc/hosts
shift
exec "$@"
"""


def check_golden_deployments_pass_debian_s_nginx():
    """every golden deployment passes `nginx -t` of Debian's 1.22.1 with --no-resolve, but for what needs SRV records"""
    if not (DEBIAN.exists() and DEBIAN_MODULE.exists()):
        return "not tried: run scripts/build debian"
    bed.fixed_folder()
    refused = []
    with bed.folder() as prefix:
        link = prefix / "modules" / DEBIAN_MODULE.name
        link.unlink()
        link.symlink_to(DEBIAN_MODULE)
        nginx = bed.wrapped_nginx(prefix, DEBIAN)
        deployments = sorted((bed.TESTS / "deployments").glob("*.toml"))
        for deployment in deployments:
            done = subprocess.run(
                ["unshare", "--mount", "sh", "-ec", WITH_NAMES, "sh", prefix, bed.COMPANION, "check", "-d", deployment,
                 "--no-resolve", "--nginx", nginx],
                capture_output=True, text=True, check=False)
            if "DNS service (SRV)" in done.stderr:
                refused.append(deployment.stem)
                continue
            assert done.returncode == 0 and "nginx 1.22.1: " in done.stdout, (deployment, done.stdout, done.stderr)
            assert "[warn]" not in done.stdout, (deployment, done.stdout)
    assert refused == ["kubernetes"], refused
    return f"{len(deployments) - len(refused)} deployments"


# What Debian's, nginx.org's and most people's nginx.conf say in their http block.
USUAL = """
    sendfile on;
    tcp_nopush on;
    types_hash_max_size 2048;
    server_tokens on;
    default_type text/html;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_prefer_server_ciphers on;
    access_log {prefix}/others.log;
    error_log stderr warn;
    gzip on;
    gzip_types application/json;
    keepalive_timeout 65;
    client_max_body_size 1m;
    proxy_read_timeout 30s;
    proxy_buffers 8 4k;
    proxy_set_header X-Real-IP $remote_addr;
    map_hash_bucket_size 64;
    limit_req_zone $remote_addr zone=users:1m rate=9r/s;
    proxy_cache_path {prefix}/cache keys_zone=media_cache:1m;
    server_names_hash_bucket_size 64;
    server {{ listen 127.0.0.1:20009; return 200 "another site"; }}
"""


def check_it_fits_into_another_nginx_conf():
    """`include synapse/http.conf` works in an nginx.conf with settings of its own, and is not changed by them"""
    bed.fixed_folder()
    deployments = ["none", "small", "everything", "tls", "mas", "compose"]
    for name in deployments:
        with bed.folder() as prefix:
            bed.companion("render", "-d", bed.TESTS / "deployments" / f"{name}.toml", "--output", prefix, "--nginx", bed.NGINX)
            conf = prefix / "nginx.conf"
            conf.write_text(
                f"load_module modules/ngx_http_matrix_user_hash_module.so;\npid {prefix}/nginx.pid;\nevents {{}}\n"
                f"http {{ {USUAL.format(prefix=prefix)}\n    include synapse/http.conf;\n}}\n")
            said = bed.Nginx(conf, prefix).test()
            assert "[warn]" not in said, (name, said)
    return f"{len(deployments)} deployments"


def check_two_homeservers_fit_into_one_nginx():
    """two deployments with names of their own include into one `http`, and each answers at its own host name"""
    bed.fixed_folder()
    workers = bed.Workers()
    try:
        with bed.folder() as prefix:
            for name, port in (("first", 20108), ("second", 20208)):
                text = (bed.TESTS / "deployments" / "small.toml").read_text()
                text = text[: text.index("[paths]")] if "[paths]" in text else text
                text = text.replace("127.0.0.1", "localhost").replace("201", str(port)[:3])
                text = text.replace("client = [20000]", f'client = [20000]\nserver_names = ["{name}.example"]\nadmin_allow = ["all"]')
                text = f'name = "{name}"\n{text}\n[media_cache]\npath = "{prefix}/{name}-media"\nsize = "1g"\n[log]\naccess = "{prefix}/{name}.log"\n'
                if "[status]" not in text:
                    text += f'[status]\nlisten = "{"127.0.0.1:20003" if name == "first" else "off"}"\n'
                (prefix / f"{name}.toml").write_text(text)
                bed.companion("render", "-d", prefix / f"{name}.toml", "--output", prefix, "--nginx", bed.NGINX)
                bed.companion("check", "-d", prefix / f"{name}.toml", "--nginx", bed.wrapped_nginx(prefix))
                workers.start(name, port=port)
            conf = prefix / "nginx.conf"
            assert not conf.exists(), "it is the operator's"
            conf.write_text(
                f"load_module modules/ngx_http_matrix_user_hash_module.so;\npid {prefix}/nginx.pid;\nevents {{}}\n"
                "http {\n    include first/http.conf;\n    include second/http.conf;\n}\n")
            # An operator's own location, which no rendering touches.
            own = prefix / "second" / "own" / "hello.conf"
            own.parent.mkdir()
            own.write_text("location = /hello { return 200 hello; }\n")
            bed.companion("render", "-d", prefix / "second.toml", "--output", prefix, "--nginx", bed.NGINX)
            said = bed.Nginx(conf, prefix).test()
            assert "[warn]" not in said, said
            with bed.Nginx(conf, prefix):
                for name in ("first", "second"):
                    host = {"Host": f"{name}.example"}
                    for path in ("/_matrix/client/v3/unheard_of", "/_synapse/admin/v2/users", "/_matrix/media/v3/download/a/b"):
                        assert bed.Client().ask("GET", path, host).worker == name, (name, path)
                assert bed.Client().ask("GET", "/hello", {"Host": "second.example"}).text == b"hello"
                assert bed.Client().ask("GET", "/hello", {"Host": "first.example"}).worker == "first"
            # Not one name is of both.
            texts = ["".join(path.read_text() for path in (prefix / name).glob("*.conf")) for name in ("first", "second")]
            for word in (r"(?m)^upstream (\w+)", r"map .* (\$\w+) ", r"geo .* (\$\w+) ", r"(?m)^log_format (\w+)", r"keys_zone=(\w+)",
                         r"matrix_user_hash_zone (\w+)", r"\?<(\w+)>", r"set (\$\w+)"):
                names = [set(re.findall(word, text)) for text in texts]
                assert (names[0] or word.startswith("geo")) and not names[0] & names[1], (word, names)
            assert not any("synapse_" in re.sub(r"#.*|/_synapse\S*", "", text) for text in texts)
    finally:
        workers.stop_all()


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
    assert "server sync1:8083 max_fails=0;" in out and not re.search(r"^ *(server .* resolve|resolver )", out, re.M), out
