echo "$URL" | krbrefresh exec -- java \
    -Djava.security.krb5.conf="${KRB5_CONFIG:-/etc/krb5.conf}" \
    -Djava.security.auth.login.config=jaas.conf \
    -Djavax.security.auth.useSubjectCredsOnly=false \
    Negotiate.java
