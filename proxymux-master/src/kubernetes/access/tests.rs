//! What is wrong with a kubeconfig is said with the file and the fix, and nothing is asked of an
//! API server that nothing vouches for.

use proxymux_testkit::pki::{Leaf, Pki};
use proxymux_transport::telemetry::chain;

use super::*;

/// A kubeconfig with these lines for its cluster and its user.
fn write(pki: &Pki, cluster: &str, user: &str) -> PathBuf {
    let path = pki.dir().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         clusters:\n- name: k\n  cluster: {{{cluster}}}\n\
         users:\n- name: u\n  user: {{{user}}}\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

async fn said(pki: &Pki, kubeconfig: Kubeconfig) -> String {
    let error = match open(&kubeconfig).await {
        Ok(access) => return format!("ok: {}", access.server),
        Err(error) => error,
    };
    chain(&error).replace(&pki.dir().display().to_string(), "DIR")
}

const SERVER: &str = "server: 'https://127.0.0.1:6443', certificate-authority: ca.crt";

#[tokio::test]
async fn files_beside_the_kubeconfig_and_content_inside_it_are_used_alike() {
    let pki = Pki::temporary().unwrap();
    let files = pki.pair("client", &Leaf::new("proxymux-master")).unwrap();
    let encoded = |path: &Path| STANDARD.encode(std::fs::read(path).unwrap());
    let (cert, key) = (encoded(&files.cert), encoded(&files.key));
    let ca = encoded(&pki.ca_file());
    std::fs::write(pki.dir().join("token"), "abc\n").unwrap();
    let name = |path: &Path| path.strip_prefix(pki.dir()).unwrap().display().to_string();
    for (cluster, user) in [
        (
            SERVER.to_owned(),
            format!(
                "client-certificate: {}, client-key: {}",
                name(&files.cert),
                name(&files.key)
            ),
        ),
        (
            format!("server: 'https://127.0.0.1:6443', certificate-authority-data: {ca}"),
            format!("client-certificate-data: {cert}, client-key-data: {key}"),
        ),
        (SERVER.to_owned(), "token: abc".to_owned()),
        (SERVER.to_owned(), "tokenFile: token".to_owned()),
        (SERVER.to_owned(), String::new()),
    ] {
        let path = write(&pki, &cluster, &user);
        let said = said(&pki, Kubeconfig::File(path)).await;
        assert_eq!(said, "ok: https://127.0.0.1:6443/", "{cluster} {user}");
    }
}

#[tokio::test]
async fn every_mistake_names_the_file_and_what_is_wrong() {
    let pki = Pki::temporary().unwrap();
    std::fs::write(pki.dir().join("empty.crt"), "").unwrap();
    let user = |text: &str| (SERVER.to_owned(), text.to_owned());
    let cluster = |text: &str| (text.to_owned(), "token: abc".to_owned());
    for ((cluster, user), expected) in [
        (
            cluster("server: 'https://127.0.0.1:6443'"),
            "kubeconfig DIR/kubeconfig: it has no certificate-authority, expected the one that \
             signed the API server's certificate",
        ),
        (
            cluster("server: 'http://127.0.0.1:8080', certificate-authority: ca.crt"),
            "kubeconfig DIR/kubeconfig: its server is http://127.0.0.1:8080/, expected \
             https://HOST:PORT",
        ),
        (
            cluster("server: 'https://127.0.0.1:6443', insecure-skip-tls-verify: true"),
            "kubeconfig DIR/kubeconfig: it says insecure-skip-tls-verify, but who answers decides \
             where addresses lead: give it a certificate-authority instead",
        ),
        (
            cluster(
                "server: 'https://127.0.0.1:6443', certificate-authority: ca.crt, \
                 proxy-url: 'http://p:3128'",
            ),
            "kubeconfig DIR/kubeconfig: it has a proxy-url, which is not supported",
        ),
        (
            user("client-certificate: none.crt, client-key: none.key"),
            "kubeconfig DIR/kubeconfig: client-certificate DIR/none.crt cannot be read: No such \
             file or directory (os error 2)",
        ),
        (
            user("client-certificate: empty.crt, client-key: empty.crt"),
            "kubeconfig DIR/kubeconfig: client-certificate DIR/empty.crt has no usable content: \
             no items found",
        ),
        (
            user("tokenFile: none.token"),
            "kubeconfig DIR/kubeconfig: tokenFile DIR/none.token cannot be read: No such file or \
             directory (os error 2)",
        ),
        (
            user("tokenFile: empty.crt"),
            "kubeconfig DIR/kubeconfig: tokenFile DIR/empty.crt is empty",
        ),
        (
            user("client-certificate: ca.crt"),
            "kubeconfig DIR/kubeconfig: it has a client-certificate without a client-key",
        ),
        (
            user("client-certificate-data: '%%%', client-key-data: '%%%'"),
            "kubeconfig DIR/kubeconfig: client-certificate-data is not base64: Invalid symbol 37, \
             offset 0.",
        ),
    ] {
        let path = write(&pki, &cluster, &user);
        assert_eq!(said(&pki, Kubeconfig::File(path)).await, expected);
    }
}

#[tokio::test]
async fn a_file_that_is_missing_or_names_what_is_not_in_it_is_said() {
    let pki = Pki::temporary().unwrap();
    let path = pki.dir().join("kubeconfig");
    assert_eq!(
        said(&pki, Kubeconfig::File(path.clone())).await,
        "cannot read the kubeconfig DIR/kubeconfig: No such file or directory (os error 2)"
    );
    let nothing = said(&pki, Kubeconfig::InClusterOr(path.clone())).await;
    assert!(
        nothing.contains("no service account here") && nothing.contains("DIR/kubeconfig"),
        "{nothing}"
    );
    for (text, expected) in [
        (
            "current-context: prod\n",
            "the kubeconfig DIR/kubeconfig has no context \"prod\", which its current-context names",
        ),
        (
            "current-context: c\ncontexts: [{name: c, context: {cluster: k}}]\n",
            "the kubeconfig DIR/kubeconfig has no cluster \"k\", which its context names",
        ),
        (
            "{}\n",
            "the kubeconfig DIR/kubeconfig cannot be used: failed to determine current context",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(said(&pki, Kubeconfig::File(path.clone())).await, expected);
    }
    std::fs::write(&path, "a: [\n").unwrap();
    let said = said(&pki, Kubeconfig::File(path)).await;
    assert!(
        said.starts_with("the kubeconfig DIR/kubeconfig cannot be used: failed to parse"),
        "{said}"
    );
}
